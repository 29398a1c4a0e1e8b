"""Texts and progress displays that several verbs share."""
