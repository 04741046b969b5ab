"""What leads a person to the right path: the page of the OpenAPI document, and hints beside a 404."""
