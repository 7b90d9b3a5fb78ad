"""The page to judge a graph by."""
