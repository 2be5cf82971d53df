-- Takes: a row of matches or decoys, and the row of copy_calibration. Gives: whether it is a copy, false where there is
-- no other image to compare with (docs/calibration.md). transforms/kernels/copies.py has the same rule.
CREATE MACRO is_copy(found, limits) AS
    coalesce(
        found.l2 <= limits.l2_limit
        AND found.coarse_l2 < limits.coarse_l2_limit
        AND found.coarse_ratio < limits.coarse_ratio_limit,
        false
    )
