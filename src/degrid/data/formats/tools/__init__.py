"""What annotation tools export: recognised, with the class names, colours and splits that they wrote."""
