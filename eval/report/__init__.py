"""Results as tables: on the screen, as Markdown and as a page."""
