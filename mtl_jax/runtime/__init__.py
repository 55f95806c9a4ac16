"""The machine: devices, compiled programs, memory, signals, progress."""
