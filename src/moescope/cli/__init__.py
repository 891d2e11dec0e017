"""The command line; each verb calls one public function."""
