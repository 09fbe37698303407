"""llmsupervisor: brings up, keeps up and reloads local LLM servers from one TOML spec."""

__version__ = "0.1.0"
