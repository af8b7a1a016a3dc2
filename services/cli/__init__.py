"""The `tandem` command: it parses and prints, and other packages do the work.

Its folders:

    commands/    the commands, those of one subject in one module
    simulate/    files of scenarios, reports and tracks, and the back-test of them
"""
