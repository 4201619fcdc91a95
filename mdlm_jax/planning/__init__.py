"""What a step costs on chips that are not here: compiled ahead of time, counted in the compiler's own text."""
