"""What pages are made of: charts, cards of matched samples, the tables of results, templates."""
