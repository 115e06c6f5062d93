"""What degrid does: each verb is one function, with the defaults of the command of its name."""
