-- A share lies between 0 and 1, and inside its interval; no more pictures are extracted than there are.
SELECT model_id, against, rule, called_share, extracted_share
FROM leaks
WHERE called > made OR extracted > pictures OR extracted + canaries_extracted > called
    OR NOT (0 <= called_share_lower AND called_share_lower <= called_share AND called_share <= called_share_upper
        AND called_share_upper <= 1)
    OR NOT (0 <= extracted_share_lower AND extracted_share_lower <= extracted_share
        AND extracted_share <= extracted_share_upper AND extracted_share_upper <= 1)
