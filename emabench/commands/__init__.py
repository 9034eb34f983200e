"""The verbs: one module each, with `main(words) -> exit status`. What is heavy is imported inside."""
