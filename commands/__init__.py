"""The commands, one file for each group of them, and how they speak: options, notes, errors, what is taken unasked.

Each command chooses its folders, calls one function of a room and prints what came of it.
"""
