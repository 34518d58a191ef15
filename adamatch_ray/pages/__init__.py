"""What a person looks at: the page of results, and the gallery of words and their regions."""
