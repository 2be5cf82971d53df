-- An extraction that was not counted against the training set.
SELECT sample_id FROM extractions WHERE k IS NULL OR k < 1
