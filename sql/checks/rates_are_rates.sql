-- A rate outside its interval, or outside 0 to 1.
SELECT extraction_rate.dimension, extraction_rate.bucket, kinds.kind
FROM extraction_rate
CROSS JOIN LATERAL (VALUES
    ('rate', rate, rate_lower, rate_upper),
    ('copied', rate_copied, rate_copied_lower, rate_copied_upper),
    ('seen', rate_seen, rate_seen_lower, rate_seen_upper),
    ('calibrated', rate_calibrated, rate_calibrated_lower, rate_calibrated_upper)
) AS kinds (kind, rate, lower, upper)
WHERE NOT (
    0 <= kinds.lower AND kinds.lower <= kinds.rate + 1e-12 AND kinds.rate <= kinds.upper + 1e-12 AND kinds.upper <= 1
)
