"""Local learning inside other people's training loops; each needs the package it is named after."""
