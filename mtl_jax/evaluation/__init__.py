"""How good a network is: metrics on validation data, and the contract."""
