"""From texts to rows, through compiled programs, to answers: what `Predictor` is made of."""
