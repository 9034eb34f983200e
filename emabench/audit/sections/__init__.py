"""The statements, a file a section of the article."""
