-- Grain: one row per (is_bought, product, other product), the smaller number first: in how many
-- baskets both were. Counted part by part: see pairs_of_part.
{{ pairs_of_part(0) }}
