"""The linter's rules: each a small pure function on the finished plan of one service, beside the others of its box."""
