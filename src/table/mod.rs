//! Tables that all workers share: look-ups, ageing, limits. They know no frame and read no clock:
//! keys are integers and the time is an argument.

pub mod mac;
