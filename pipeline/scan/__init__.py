"""What a source holds: a row for every usable sample, and where its bytes lie."""
