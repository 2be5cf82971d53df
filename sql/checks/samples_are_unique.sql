-- A sample_id that is there twice.
SELECT sample_id FROM samples GROUP BY sample_id HAVING count(*) > 1
