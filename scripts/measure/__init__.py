"""What maintainers measure: speed, accuracy, size and traffic."""
