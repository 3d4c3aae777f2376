"""What `masked_sequence` is made of: masked language models, found, spelled and exported."""
