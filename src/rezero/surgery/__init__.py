"""Other people's models: find their residual additions, gate them, take the gates out again."""
