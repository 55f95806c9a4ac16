"""Small datasets cut from official archives: downloaded, checked, laid out."""
