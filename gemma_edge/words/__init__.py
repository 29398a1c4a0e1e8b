"""Results in words: what several verbs say of the same thing."""
