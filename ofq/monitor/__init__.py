"""What is told of runs from outside: their status, what is wrong with them, what they will cost."""
