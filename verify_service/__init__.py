"""The verify service: the target model, which alone decides what is committed."""
