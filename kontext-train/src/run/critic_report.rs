//! Facts of a step against a critic.

/// Report of the adversarial part of a training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CriticReport {
    /// The adversarial term of the student's loss, before its weight.
    pub student_loss: f64,
    /// The critic's loss, without R1.
    pub critic_loss: f64,
    /// Share of pairs whose real image has the higher mean logit: 0.5 is chance.
    pub accuracy: f64,
    /// Norm of the critic's gradient.
    pub critic_norm: f64,
}
