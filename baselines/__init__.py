"""What STAR is compared with: see README.md beside this."""
