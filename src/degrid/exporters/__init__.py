"""Networks as files for other runtimes: one class and one row of `table.EXPORTERS` per format.

A file is run and compared with the network before it counts; see `degrid.verbs.export`.
"""
