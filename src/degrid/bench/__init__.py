"""Speed and memory: fair timings, the cases of `degrid bench`, and its tables and pictures."""
