"""Training on the user's own folders and files: their content, the choice of settings, the page that follows."""
