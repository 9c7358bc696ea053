"""Section 4: what sharpness and curvature of a minimum tell of generalization."""
