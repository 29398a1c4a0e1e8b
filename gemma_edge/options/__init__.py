"""Arguments that several verbs share, and what they turn into."""
