"""The one loop that trains every task."""
