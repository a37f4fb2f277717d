"""What a config costs on given devices, read off its compiled programs before any of them runs."""
