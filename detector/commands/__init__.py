"""What the tools do: one module and one function for each, from a composed configuration."""
