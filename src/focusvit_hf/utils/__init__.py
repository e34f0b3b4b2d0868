"""What every room uses: files that are written whole, names on the Hub, the environment of a result."""
