"""What STAR is compared with; see README.md in this folder."""
