"""The experiments of papers, each made again by one command."""
