"""What `emabench new` copies into a user's folder, with NAME replaced. These files are checked like all others."""
