"""Sources of drafts for speculative decoding: guesses at the next tokens, which the model then checks in one step."""
