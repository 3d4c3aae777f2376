"""What came of a run: matched images, statistics, the page and the card."""
