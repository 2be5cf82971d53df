-- A rate outside its interval, or outside 0 to 1.
SELECT dimension, bucket FROM extraction_rate
WHERE NOT (0 <= rate_lower AND rate_lower <= rate + 1e-12 AND rate <= rate_upper + 1e-12 AND rate_upper <= 1)
   OR NOT (0 <= rate_calibrated_lower AND rate_calibrated_lower <= rate_calibrated + 1e-12
           AND rate_calibrated <= rate_calibrated_upper + 1e-12 AND rate_calibrated_upper <= 1)
