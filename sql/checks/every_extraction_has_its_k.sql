-- An extraction that was not counted against the training set, though its picture could be decoded.
SELECT extractions.sample_id
FROM extractions ANTI JOIN unreadable USING (sample_id)
WHERE extractions.k IS NULL OR extractions.k < 1
