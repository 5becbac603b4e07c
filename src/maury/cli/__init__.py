"""The command line: each command is one call of the library, with a progress bar and a summary.

`app` lists all commands; a module holds those of one subject, `common` the options they share, and
`terminal` what they print.
"""
